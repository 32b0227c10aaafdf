# How fast, as ratios to what the same machine does in the same round: the middle of three. Judged on the full list only:
# a shared machine with small files says little. CPU seconds are those of everything of gabion: nodes and commands.
# shellcheck shell=bash disable=SC2154

test_speed() {
    local rounds=3 round case
    command -v fio > /dev/null || fail "no fio; install it"
    command -v iperf3 > /dev/null || fail "no iperf3; install it"
    [ -z "$small" ] || rounds=1
    random_file "$t/file" $((file_mib << 20)) "$seed"
    for round in $(seq "$rounds"); do
        speed_round
        echo "round $round done"
        rm -rf "$t/a" "$t/b" "$t/fio"
    done
    for case in put get fetch wire; do
        figure "$(speed_case "$case"): $(middle "$case.rate") MiB/s, $(spread "$case.ratio") times" \
            "$(speed_limit "$case")'s time ($(middle "$case.limit") MiB/s)$(speed_verdict "$case" ratio)," \
            "$(spread "$case.cpu") CPU s/GiB$(speed_verdict "$case" cpu)$(speed_remark "$case");"
    done
    if grep -q TOO "$t/figures"; then fail "$(grep TOO "$t/figures")"; fi
}

# Times the limit's time, and CPU seconds for each GiB: not more than this.
speed_most() {
    case $1.$2 in
        put.ratio | get.ratio) echo 1.15 ;;
        fetch.ratio) echo 2 ;;
        put.cpu) echo 0.75 ;;
        get.cpu) echo 0.6 ;;
        fetch.cpu) echo 1.3 ;;
    esac
}

speed_verdict() { # CASE ratio|cpu
    local most good=fast bad=SLOW
    most=$(speed_most "$1" "$2")
    [ "$2" = ratio ] || good=cheap bad=DEAR
    if [ -n "$small" ] || [ -z "$most" ]; then
        return
    elif holds "$(middle "$1.$2") <= $most"; then
        echo ": $good enough for $most"
    else
        echo ": TOO $bad for $most"
    fi
}

speed_case() {
    case $1 in
        put | get) echo "$1" ;;
        fetch) echo "node to node, kept" ;;
        wire) echo "node to node, not kept" ;;
    esac
}

speed_limit() { case $1 in put | get) echo fio ;; *) echo iperf3 ;; esac }
# A cache that leaves out what it has no time for would be fast and cheap.
speed_remark() {
    [ "$1" = fetch ] || return 0
    echo ", $(middle fetch.kept) % kept"
    if [ -z "$small" ] && holds "$(middle fetch.kept) < 95"; then echo ": TOO LITTLE for 95"; fi
}

# One node, then two; each in an empty directory.
speed_round() {
    local link
    sync # in the page cache and clean: writing it back would compete with fio and put alike, and not equally
    fio_rate write > "$t/limit"
    node_start a --replicas 1
    cat "$t/file" > /dev/null
    measured put "$(cat "$t/limit")" a -- g a put "$t/file"
    drop_caches
    fio_rate read > "$t/limit"
    drop_caches
    measured get "$(cat "$t/limit")" a -- g a get file -o /dev/null

    # The second joined later and holds nothing of the file.
    iperf_rate > "$t/limit"
    link=$(cat "$t/limit")
    node_join b a --member
    node_ready b 2
    cat "$t"/a/segments/*.seg > /dev/null # the source is hot: this is about the network
    measured fetch "$link" a b -- fetch_and_keep
    note fetch.kept "$(calc "100 * $(g b status --json | field cache_bytes) / ($file_mib * 1048576)" 0)"
    measured wire "$link" a b -- g b get file --remote -o /dev/null
    node_stop b
    node_stop a
    rm -f "$t/a.port" "$t/b.port"
}

# A node keeps what it fetched in the background, and while it has buffers to spare: until it has written for the last
# time.
fetch_and_keep() {
    local before='' written='' still=0
    g b get file -o /dev/null
    while [ $still -lt 4 ]; do
        written=$(grep ^write_bytes "/proc/$(cat "$t/b.pid")/io")
        if [ "$written" = "$before" ]; then still=$((still + 1)); else still=0 ended=$(now); fi
        before=$written
        sleep 0.1
    done
}

mib() { calc "$1 / 1048576" 0; }

# Runs a command for the whole file and notes its rate, the LIMIT's time and CPU seconds per GiB in files of that name.
measured() { # NAME LIMIT NODE… -- command…
    local name=$1 limit=$2 nodes=() shell=$BASHPID started ended='' took before after rate
    shift 2
    while [ "$1" != -- ]; do nodes+=("$1") && shift; done
    shift
    before=$(cpu_seconds "$shell" "${nodes[@]}")
    started=$(now)
    "$@" > "$t/measured.out"
    took=$(calc "${ended:-$(now)} - $started" 3)
    after=$(cpu_seconds "$shell" "${nodes[@]}")
    rate=$(calc "$file_mib * 1048576 / $took" 0)
    note "$name.rate" "$(mib "$rate")"
    note "$name.limit" "$(mib "$limit")"
    note "$name.ratio" "$(calc "$limit / $rate")"
    note "$name.cpu" "$(calc "($after - $before) * 1024 / $file_mib")"
}

note() { echo "$2" >> "$t/$1"; }

# Of the numbers in $t/FILE.
middle() { sort -n "$t/$1" | awk '{ line[NR] = $1 } END { print line[int((NR + 1) / 2)] }'; }
spread() {
    local least most
    least=$(sort -n "$t/$1" | head -n 1) most=$(sort -n "$t/$1" | tail -n 1)
    if [ "$least" = "$most" ]; then echo "$least"; else echo "$(middle "$1") ($least to $most)"; fi
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
    iperf3 -c 127.0.0.1 -p $port -t 3 -J > "$t/iperf.json" || fail "iperf3: $(cat "$t/iperf.json")"
    rate=$(sed -n 's/.*"bits_per_second":[[:space:]]*\([0-9]*\).*/\1/p' "$t/iperf.json" | tail -n 1)
    [ -n "$rate" ] || fail "iperf3 says no rate: $(cat "$t/iperf.json")"
    rm -f "$t/iperf.pid"
    calc "$rate / 8" 0
}
