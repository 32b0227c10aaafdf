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

# Seconds that a command takes.
timed() {
    local started
    started=$(now)
    "$@" > /dev/null || fail "it failed: $*"
    calc "$(now) - $started"
}

test_hung() {
    local node round took before put get slowest=0
    node_start a --replicas 3
    node_join b a --member
    node_join c a --member
    for node in a b c; do node_ready $node 3; done
    random_file "$t/file" $((file_mib << 18)) "$seed"
    echo tiny > "$t/tiny"
    before=$(timed g a put "$t/file" --name before)
    kill -STOP "$(cat "$t/c.pid")"
    # Nobody knows yet.
    get=$(timed g b get before --remote -o "$t/copy")
    same "$t/file" "$t/copy"
    put=$(timed g a put "$t/file" --name during --no-dedup)
    for round in $(seq 20); do
        for took in "$(timed g a ls)" "$(timed g b put "$t/tiny" --name "tiny/$round")" "$(timed g a cat before --range 0-99)"; do
            slowest=$(calc "($took > $slowest ? $took : $slowest)")
        done
    done
    figure "put $put s (before $before s), get $get s, the slowest of 60 small commands $slowest s"
    # A peer counts as gone after 4 s without a word: who waits for that waits for the hung one.
    holds "$get < $before + 3 && $put < 2 * $before + 3 && $slowest < 3" || fail "the hung node was waited for"
    kill -CONT "$(cat "$t/c.pid")"
    node_ready c 3
    g c get during -o "$t/copy"
    same "$t/file" "$t/copy"
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
    # A connection that ended is one line, with the bytes that came back.
    local deadline=$((SECONDS + 40))
    until grep -q '^answered .* to 80$' "$t/proxy_of_b.out"; do
        [ $SECONDS -lt $deadline ] || fail "no opening of the foreign network came to its end: $(cat "$t/proxy_of_b.out")"
        sleep 0.1
    done
    kill -KILL "$(cat "$t/lost.pid")" && rm "$t/lost.pid"
    ! grep '^answered [1-9]' "$t/proxy_of_b.out" || fail "a wrong network key got an answer"
    figure "$(grep -c '^answered 0' "$t/proxy_of_b.out") openings of another network, 0 bytes back;"

    # Very many at once, while the node goes on serving.
    local files=$((strangers + 100)) connected
    raise_open_files $files || skip "$strangers sockets need $files open files; $(ulimit -Hn) are allowed here"
    background flood python3 "$here/acceptance.d/strangers.py" flood "$a_port" "$strangers" 127.0.0.2
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
    kill -0 "$(cat "$t/flood.pid")" 2> /dev/null || fail "the flood ended: $(cat "$t/flood.out" "$t/flood.err")"
    ! grep FAILED "$t/flood.out" || fail "a stranger of the flood got an answer"
    connected=$(sed -n 's/ strangers connected.*//p' "$t/flood.out")
    [ "$connected" -ge "$strangers" ] || fail "not all of $strangers came through: $(cat "$t/flood.out")"
    figure "$(cat "$t/flood.out")"
}

# For this shell and what it starts from here on; as root also beyond the hard limit.
raise_open_files() { # COUNT
    ulimit -Sn "$1" 2> /dev/null || ulimit -n "$1" 2> /dev/null
}

strangers_port() { # NAME of a background proxy
    local deadline=$((SECONDS + 10))
    until grep -q '^port ' "$t/$1.out"; do
        [ $SECONDS -lt $deadline ] || fail "no proxy: $(cat "$t/$1.err")"
        sleep 0.1
    done
    sed -n 's/^port //p' "$t/$1.out"
}

# One chunk, decrypted by openssl: the key is all that it needs.
decrypted() { # KEY [FILE]
    openssl enc -aes-256-ctr -d -K "$1" -iv 00000000000000000000000000000000 "${@:2}"
}

hex_of() { od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'; } # FILE OFFSET BYTES

# Takes the chunk out of the segments of NAME: its record, 64 bytes, stands in front and says kind (2), length and address.
take_chunk() { # NAME ADDRESS FILE
    python3 - "$2" "$3" "$t/$1"/segments/*.seg << 'END'
import mmap, struct, sys
address, into, *segments = sys.argv[1:]
for path in segments:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as segment:
        at = -1
        while (at := segment.find(bytes.fromhex(address), at + 1)) >= 0:
            record = at - 16
            if record % 64 == 0 and segment[record + 8] == 2:
                (length,) = struct.unpack_from("<I", segment, record + 12)
                with open(into, "wb") as file:
                    file.write(segment[record + 64 : record + 64 + length])
                print(f"{length} bytes from byte {record + 64} of {path.rsplit('/', 1)[1]}")
                sys.exit()
sys.exit(f"chunk {address} is in no segment")
END
}

# A link is base32 of version 1, depth 1, length 8, root 32, key 32, checksum 8; a file of more than one chunk has depth 1,
# and its root's plaintext is an entry for each leaf: address 32, key 32, span 8.
test_openssl() {
    local link number entry bytes=$((3 << 20))
    node_start a
    random_file "$t/file" $bytes "$seed"
    g a put "$t/file"
    link=$(g a share file | tr a-z A-Z)
    link=${link#GL1}
    while [ $((${#link} % 8)) != 0 ]; do link=$link=; done
    base32 -d <<< "$link" > "$t/link.bin"
    [ "$(hex_of "$t/link.bin" 1 1)" = 01 ] || fail "the link is not of depth 1"
    node_stop a
    take_chunk a "$(hex_of "$t/link.bin" 10 32)" "$t/root.chunk"
    decrypted "$(hex_of "$t/link.bin" 42 32)" -in "$t/root.chunk" -out "$t/root"
    [ "$(stat -c %s "$t/root")" = $((3 * 72)) ] || fail "the root has not 3 entries: $(stat -c %s "$t/root") bytes"
    for number in 0 1 2; do
        entry=$((number * 72))
        [ "$(hex_of "$t/root" $((entry + 64)) 8)" = 0000100000000000 ] || fail "leaf $number spans something else"
        take_chunk a "$(hex_of "$t/root" $entry 32)" "$t/leaf.chunk"
        decrypted "$(hex_of "$t/root" $((entry + 32)) 32)" -in "$t/leaf.chunk" -out "$t/leaf.$number"
        ! cmp -s "$t/leaf.chunk" "$t/leaf.$number" || fail "leaf $number is not encrypted"
    done
    cat "$t"/leaf.[012] > "$t/leaves"
    same "$t/file" "$t/leaves"
    figure "root and 3 leaves"
}
