# How fast, as ratios to what the same machine does in the same run. Judged on the full list only: a shared machine with
# small files says little.
# shellcheck shell=bash disable=SC2154

test_speed() {
    local bytes=$((file_mib << 20)) gib fio_write fio_read took put get before after link remote
    command -v fio > /dev/null || fail "no fio; install it"
    command -v iperf3 > /dev/null || fail "no iperf3; install it"
    gib=$(calc "$file_mib / 1024" 4)
    random_file "$t/file" "$bytes" "$seed"
    sync # in the page cache and clean: writing it back would compete with fio and put alike, and not equally
    fio_write=$(fio_rate write)
    node_start a
    before=$(cpu_seconds a)
    took=$(timed g a put "$t/file")
    after=$(cpu_seconds a)
    put=$(calc "$bytes / $took" 0)
    figure "put $(mib "$put") MiB/s, $(calc "$fio_write / $put") times fio's time ($(mib "$fio_write") MiB/s)," \
        "$(calc "($after - $before) / $gib") CPU s/GiB;"
    local put_ratio put_cpu
    put_ratio=$(calc "$fio_write / $put") put_cpu=$(calc "($after - $before) / $gib")

    drop_caches
    fio_read=$(fio_rate read)
    drop_caches
    before=$(cpu_seconds a)
    took=$(timed g a get file -o /dev/null)
    after=$(cpu_seconds a)
    get=$(calc "$bytes / $took" 0)
    figure "get $(mib "$get") MiB/s, $(calc "$fio_read / $get") times fio's time ($(mib "$fio_read") MiB/s)," \
        "$(calc "($after - $before) / $gib") CPU s/GiB;"

    # Node to node: the second joined later and holds nothing of the file.
    link=$(iperf_rate)
    cat "$t"/a/segments/*.seg > /dev/null # the source is hot: this is about the network
    node_join b a --member
    node_ready b 2
    before=$(calc "$(cpu_seconds a) + $(cpu_seconds b)")
    took=$(timed g b get file --remote -o /dev/null)
    after=$(calc "$(cpu_seconds a) + $(cpu_seconds b)")
    remote=$(calc "$bytes / $took" 0)
    figure "node to node $(mib "$remote") MiB/s, $(calc "$link / $remote") times iperf3's time ($(mib "$link") MiB/s)," \
        "$(calc "($after - $before) / $gib") CPU s/GiB"
    [ -z "$small" ] || return 0
    holds "$put_ratio <= 1.5" || fail "put takes $put_ratio times as long as fio"
    holds "$put_cpu < 1" || fail "put takes $put_cpu CPU seconds per GiB"
}

mib() { calc "$1 / 1048576" 0; }

timed() { # command…: seconds
    local started
    started=$(now)
    "$@" > "$t/timed.out"
    calc "$(now) - $started" 3
}

drop_caches() {
    sync
    { echo 3 > /proc/sys/vm/drop_caches; } 2> /dev/null || echo "the page cache stays: reads may come from it"
}

fio_rate() { # read|write: bytes per second
    fio --name=x --filename="$t/fio" --size="${file_mib}M" --rw="$1" --bs=1M --direct=1 --ioengine=io_uring --iodepth=16 \
        --end_fsync=1 --output-format=json --output="$t/fio.json" > /dev/null
    sed -n 's/.*"bw_bytes" : \([0-9]*\).*/\1/p' "$t/fio.json" | sort -n | tail -n 1
}

iperf_rate() { # bytes per second over loopback, one stream
    local port=$((20000 + RANDOM % 10000)) rate
    background iperf iperf3 -s -1 --forceflush -p $port
    local deadline=$((SECONDS + 10))
    until grep -q listening "$t/iperf.out"; do
        [ $SECONDS -lt $deadline ] || fail "iperf3 does not start"
        sleep 0.1
    done
    rate=$(iperf3 -c 127.0.0.1 -p $port -t 3 -J | sed -n 's/.*"bits_per_second":[[:space:]]*\([0-9]*\).*/\1/p' | tail -n 1)
    rm -f "$t/iperf.pid"
    calc "$rate / 8" 0
}
