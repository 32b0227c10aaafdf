# Storage nodes that must stay blind, strangers that must stay strangers.
# shellcheck shell=bash disable=SC2154

canary=CANARY-that-no-storage-node-may-see

test_blind() {
    local file
    command -v tcpdump > /dev/null || fail "no tcpdump; install it"
    node_start a --replicas 2
    node_join s a
    node_ready a 2
    node_ready s 2
    background capture tcpdump -i lo -s 0 -U -B 65536 -w "$t/capture.pcap" "tcp port $(cat "$t/s.port") or tcp port $(cat "$t/a.port")"
    local deadline=$((SECONDS + 10))
    until grep -q 'listening on' "$t/capture.err"; do
        kill -0 "$(cat "$t/capture.pid")" 2> /dev/null || skip "nothing can be captured: $(tail -n 1 "$t/capture.err")"
        [ $SECONDS -lt $deadline ] || fail "nothing is captured: $(cat "$t/capture.err")"
        sleep 0.1
    done
    yes "$canary" | head -c 5000000 > "$t/file-$canary" || true
    echo "$canary" > "$t/tiny"
    g a put "$t/file-$canary" --name "secret/$canary"
    g a put "$t/tiny" --name "secret/tiny-$canary"
    g a share "secret/$canary" > "$t/link"
    expect 7 "storage node" g s get "secret/$canary" -o "$t/never"
    g s get "@$t/link" -o "$t/copy"
    same "$t/file-$canary" "$t/copy"
    [ "$(g s get "@$t/link" --range 1000000-1000099 -o - | cmp - <(tail -c +1000001 "$t/copy" | head -c 100) 2>&1)" = "" ] \
        || fail "a range of the link differs"
    expect 7 . g s put "$t/tiny" --name x
    kill -INT "$(cat "$t/capture.pid")"
    wait "$(cat "$t/capture.pid")" || true
    rm "$t/capture.pid"
    [ "$(stat -c %s "$t/capture.pcap")" -gt 1000 ] || fail "the capture is empty"
    node_stop s
    for file in CANARY secret/ tiny-; do
        if grep -raqF "$file" "$t/s"; then fail "the storage node's disk holds $file"; fi
        if grep -aqF "$file" "$t/capture.pcap"; then fail "the traffic holds $file"; fi
    done
    [ "$(find "$t/s" -type f -size +1k | wc -l)" -gt 0 ] || fail "the storage node stores nothing"
    figure "$(($(stat -c %s "$t/capture.pcap") >> 10)) KiB captured"
}

test_strangers() {
    command -v python3 > /dev/null || fail "no python3; install it"
    local a_port proxy_port proxy_of_b
    # An honest opening, recorded on its way through a proxy, to be played again.
    node_start a
    a_port=$(cat "$t/a.port")
    background proxy python3 "$here/acceptance.d/strangers.py" proxy "$a_port" "$t/opening"
    proxy_port=$(strangers_port proxy)
    node_stop a
    node_start a --advertise "127.0.0.1:$proxy_port"
    node_join b a --member
    node_ready b 2
    echo hello > "$t/file"
    g a put "$t/file"
    [ "$(stat -c %s "$t/opening")" = 80 ] || fail "no opening was recorded"
    figure "$(python3 "$here/acceptance.d/strangers.py" silent "$a_port" "$t/opening");"

    # A node of another network, whose tickets lead here.
    background proxy_of_b python3 "$here/acceptance.d/strangers.py" proxy "$a_port" "$t/foreign"
    proxy_of_b=$(strangers_port proxy_of_b)
    node_start foreign --advertise "127.0.0.1:$proxy_of_b"
    g foreign ticket --member > "$t/foreign.ticket"
    node_kill foreign
    "$gabion" --listen 127.0.0.1:0 --data-dir "$t/lost" --join "@$t/foreign.ticket" > "$t/lost.out" 2> "$t/lost.err" &
    echo $! > "$t/lost.pid"
    local deadline=$((SECONDS + 20))
    until [ -s "$t/foreign" ]; do
        [ $SECONDS -lt $deadline ] || fail "the foreign node did not knock"
        sleep 0.1
    done
    # Whoever is refused is hung up on: only then is it known how much came back.
    deadline=$((SECONDS + 20))
    until grep -q '^answered ' "$t/proxy_of_b.out"; do
        [ $SECONDS -lt $deadline ] || fail "a wrong network key is held on to: $(cat "$t/proxy_of_b.err")"
        sleep 0.1
    done
    ! grep -qv -e '^port ' -e '^answered 0 bytes ' "$t/proxy_of_b.out" \
        || fail "a wrong network key got an answer: $(cat "$t/proxy_of_b.out")"
    kill -KILL "$(cat "$t/lost.pid")" && rm "$t/lost.pid"

    # Very many at once, while the node goes on serving.
    ulimit -n "$(ulimit -Hn)"
    local count=$strangers most=$(($(ulimit -n) - 100))
    [ $most -ge "$count" ] || count=$most
    background flood python3 "$here/acceptance.d/strangers.py" flood "$a_port" "$count" 127.0.0.2
    deadline=$((SECONDS + 60))
    until grep -q connected "$t/flood.out"; do
        kill -0 "$(cat "$t/flood.pid")" 2> /dev/null || fail "the flood ended: $(cat "$t/flood.err")"
        [ $SECONDS -lt $deadline ] || fail "the flood does not get through"
        echo again >> "$t/file"
        g a put "$t/file"
        sleep 0.1
    done
    for _ in 1 2 3 4 5; do
        [ "$(g b cat file --remote)" = "$(cat "$t/file")" ] || fail "the node serves something else"
        g a put "$t/file" --name again > /dev/null
    done
    g a status > /dev/null || fail "the node is not ready"
    figure "$(cat "$t/flood.out")"
}

strangers_port() { # NAME of a background proxy
    local deadline=$((SECONDS + 10))
    until grep -q '^port ' "$t/$1.out"; do
        [ $SECONDS -lt $deadline ] || fail "no proxy: $(cat "$t/$1.err")"
        sleep 0.1
    done
    sed -n 's/^port //p' "$t/$1.out"
}

# The link of a file of one chunk holds that chunk's key: base32 of version 1, depth 1, length 8, root 32, key 32, checksum 8.
offset_of() { # HEX FILE: -1 when it is not there
    python3 -c 'import mmap, sys
with open(sys.argv[2], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as bytes_:
    print(bytes_.find(bytes.fromhex(sys.argv[1])))' "$1" "$2"
}

test_openssl() {
    local link key prefix segment found offset
    node_start a
    random_file "$t/file" 1048576 "$seed"
    g a put "$t/file"
    link=$(g a share file | tr a-z A-Z)
    link=${link#GL1}
    while [ $((${#link} % 8)) != 0 ]; do link=$link=; done
    base32 -d <<< "$link" > "$t/link.bin"
    key=$(od -An -v -tx1 -j 42 -N 32 "$t/link.bin" | tr -d ' \n')
    # Its beginning tells where the chunk lies; the chunk itself is then taken out and decrypted.
    prefix=$(head -c 32 "$t/file" | openssl enc -aes-256-ctr -K "$key" -iv 00000000000000000000000000000000 \
        | od -An -v -tx1 | tr -d ' \n')
    node_stop a
    for segment in "$t"/a/segments/*.seg; do
        found=$(offset_of "$prefix" "$segment")
        [ "$found" -ge 0 ] || continue
        offset=$found
        dd if="$segment" iflag=skip_bytes,count_bytes bs=1M skip="$offset" count=1048576 status=none > "$t/chunk"
        openssl enc -d -aes-256-ctr -K "$key" -iv 00000000000000000000000000000000 -in "$t/chunk" -out "$t/plain"
        same "$t/file" "$t/plain"
        figure "found at offset $offset"
        return
    done
    fail "the chunk is in no segment"
}
