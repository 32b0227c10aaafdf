# Files in and out of one node and of three.
# shellcheck shell=bash disable=SC2154

# What a line of NAME's output that begins like this says to type.
printed() { # NAME BEGINNING
    local line
    line=$(grep -m 1 "^ *$2" "$t/$1.out") || fail "the node does not say $2: $(cat "$t/$1.out")"
    sed 's/^ *//' <<< "$line"
}

test_starts() {
    local node deadline=$((SECONDS + 10)) words ticket started
    mkdir "$t/bin" "$t/first" "$t/second"
    ln -s "$gabion" "$t/bin/gabion"
    # Nothing but a home and the command: what a user has who has set up nothing.
    local first=(env -i "HOME=$t/first" "PATH=$t/bin:$PATH") second=(env -i "HOME=$t/second" "PATH=$t/bin:$PATH")
    background a "${first[@]}" gabion --listen 127.0.0.1:0
    until "${first[@]}" gabion status > /dev/null 2>&1 && grep -q -- '--join' "$t/a.out"; do
        [ $SECONDS -lt $deadline ] || fail "the node does not say how to join: $(cat "$t/a.out" "$t/a.err")"
        sleep 0.1
    done
    # What it prints works, word for word but for what stands in capitals and the port.
    echo hello > "$t/file"
    read -ra words <<< "$(printed a 'gabion put')"
    "${first[@]}" "${words[@]/#FILE/$t/file}"
    read -ra words <<< "$(printed a 'gabion get')"
    words=("${words[@]/#FILE/file}")
    "${first[@]}" "${words[@]/#COPY/$t/copy}"
    same "$t/file" "$t/copy"
    read -ra words <<< "$(printed a 'gabion ticket')"
    ticket=$("${first[@]}" "${words[@]}")
    read -ra words <<< "$(printed a 'gabion --listen')"
    words=("${words[@]/#*:3000/127.0.0.1:0}")
    background b "${second[@]}" "${words[@]/#TICKET/$ticket}"
    deadline=$((SECONDS + 30))
    for node in first second; do
        local -n alone=$node
        until [ "$("${alone[@]}" gabion status --json 2> /dev/null | field nodes_alive)" = 2 ]; do
            [ $SECONDS -lt $deadline ] || fail "$node does not see the other: $(cat "$t/b.out" "$t/b.err")"
            sleep 0.1
        done
    done
    [ "$("${second[@]}" gabion cat file)" = hello ] || fail "what was put on the first is not on the second"
    expect 1 first "${first[@]}" gabion --listen 127.0.0.1:0
    started=$(now)
    node_stop b
    node_stop a
    figure "2 nodes stopped in $(calc "$(now) - $started") s"
}

test_demo() {
    local ports before
    ports=$(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(",".join(str(socket.getsockname()[1]) for socket in sockets))')
    before=$(find "$t" | wc -l)
    TMPDIR=$t "$gabion" demo --size "$((file_mib < 256 ? file_mib : 256))M" --ports "$ports" > "$t/demo.out"
    grep -Eq 'the third node gave [1-9][0-9.]* [KMG]iB of disk space back' "$t/demo.out" || fail "$(cat "$t/demo.out")"
    # What it made is gone; its output is what came.
    [ "$(find "$t" | wc -l)" = $((before + 1)) ] || fail "left behind: $(find "$t")"
    figure "$(wc -l < "$t/demo.out") steps"
}

# A data directory that the first version of its format left after kill -9. Its first start and the one after it read the
# same files, and it takes more.
test_old_data() {
    local sum=38e142d6ff3c3d8c3522027308ed935d6deb3ca504ad19835741d65b4a366f99 round number
    python3 "$here/acceptance.d/unpack.py" "$here/../tests/fixtures/data-directory-v1.pack" "$t/a"
    echo new > "$t/new"
    for round in 1 2; do
        node_start a --replicas 1
        for number in {0..7}; do g a cat "frozen/$number"; done > "$t/frozen"
        [ "$(sha256sum < "$t/frozen")" = "$sum  -" ] || fail "start $round: other bytes came out: $(wc -c < "$t/frozen")"
        expect 4 "no file" g a cat removed
        g a verify > "$t/verify.out" || fail "start $round: $(cat "$t/verify.out")"
        [ "$round" = 1 ] || same "$t/new" <(g a cat new)
        g a put -q "$t/new"
        node_stop a
    done
}

test_one_node() {
    local started took bytes=$((file_mib << 20))
    node_start a
    memory_watch
    random_file "$t/file" "$bytes" "$seed"
    started=$(now)
    g a put "$t/file"
    took=$(calc "$(now) - $started")
    figure "put $(calc "$file_mib / $took" 0) MiB/s,"
    started=$(now)
    g a get file -o "$t/copy"
    took=$(calc "$(now) - $started")
    figure "get $(calc "$file_mib / $took" 0) MiB/s;"
    same "$t/file" "$t/copy"
    local code=0
    timeout --preserve-status -s INT 0.1 "$gabion" --data-dir "$t/a" get file -o "$t/resumed" || code=$?
    [ $code = 130 ] || [ $code = 0 ] || fail "an interrupted get exits $code"
    [ $code = 0 ] || [ ! -e "$t/resumed" ] || fail "an interrupted get left half a file"
    g a get file -o "$t/resumed"
    same "$t/file" "$t/resumed"
    rm "$t/file" "$t/copy" "$t/resumed"
    g a rm file
    noise $((pipe_mib << 20)) "$seed" | tee >(sha256sum > "$t/in.sum") | g a put - --name piped
    g a cat piped | sha256sum > "$t/out.sum"
    same "$t/in.sum" "$t/out.sum"
    memory_check
}

test_three_nodes() {
    local node other
    node_start a
    node_join b a --member
    node_join c a --member
    for node in a b c; do node_ready $node 3; done
    memory_watch
    random_file "$t/file" $((file_mib << 20)) "$seed"
    g a put "$t/file"
    g c get file -o "$t/copy" --remote
    same "$t/file" "$t/copy"
    for node in b a; do
        rm "$t/copy"
        node_kill $node
        g c get file -o "$t/copy"
        same "$t/file" "$t/copy"
        # With three copies everything is here: what the other node that is left holds is right as well.
        rm "$t/copy"
        g c get file -o "$t/copy" --remote
        same "$t/file" "$t/copy"
        node_start $node
        for other in a b c; do node_wait $other 3; done
        node_ready $node 3
    done
    memory_check
}

test_sizes() {
    local size range first last
    node_start a
    for size in 0 1 31 32 1048575 1048576 1048577 $((100 * 1048576 + 7)); do
        random_file "$t/in" $size "$seed.$size"
        g a put "$t/in" --name "sizes/$size"
        g a get "sizes/$size" -o "$t/out"
        same "$t/in" "$t/out"
        g a put - --name "sizes/piped-$size" < <(cat "$t/in")
        g a cat "sizes/piped-$size" | cmp - "$t/in" || fail "piped $size differs"
        [ "$size" -gt 0 ] || continue
        for range in 0-0 0-$((size - 1)) $((size - 1))-$((size - 1)) $((size / 3))-$((size / 2)) $((size / 2))-; do
            first=${range%-*} last=${range#*-}
            dd if="$t/in" of="$t/want" iflag=skip_bytes,count_bytes bs=1M status=none \
                skip="$first" count=$((${last:-$size} - first + 1))
            g a get "sizes/$size" --range "$range" -o - | cmp - "$t/want" || fail "range $range of $size differs"
            rm -f "$t/part"
            g a get "sizes/$size" --range "$range" -o "$t/part"
            same "$t/want" "$t/part"
        done
    done
    for _ in 1 2 3 4 5 6 7 8; do
        first=$((RANDOM * RANDOM % size)) last=$((first + RANDOM * 97 % 5000000))
        dd if="$t/in" iflag=skip_bytes,count_bytes bs=1M status=none skip=$first count=$((last - first + 1)) \
            | cmp - <(g a cat "sizes/$size" --range "$first-$last") || fail "range $first-$last of $size differs"
    done
    figure "8 sizes, 43 ranges"
}

test_dedup() {
    local empty once twice reclaimed bytes=$(((file_mib > 256 ? file_mib : 256) << 20))
    node_start a
    random_file "$t/file" $bytes "$seed"
    empty=$(disk_bytes a)
    g a put "$t/file" --name one
    once=$(disk_bytes a)
    [ "$(g a put "$t/file" --name two --json | field bytes_new)" = 0 ] || fail "the second put stored something new"
    twice=$(disk_bytes a)
    figure "grew by $(calc "($twice - $once) / $bytes * 100") %;"
    holds "$twice - $once < $bytes / 100" || fail "grew by $((twice - once)) bytes"
    g a rm one
    g a reclaim
    g a get two -o "$t/copy"
    same "$t/file" "$t/copy"
    g a rm two
    g a reclaim
    # A segment begins with 64 MiB that it may not need.
    local slack=$(((64 << 20) * ($(nproc) + 2)))
    for _ in $(seq 50); do
        reclaimed=$(disk_bytes a)
        ! holds "$reclaimed - $empty < $bytes / 50 + $slack && $reclaimed < $once - $bytes / 2" || break
        sleep 0.2
    done
    figure "$((once >> 20)) MiB became $((reclaimed >> 20)) MiB"
    holds "$reclaimed - $empty < $bytes / 50 + $slack && $reclaimed < $once - $bytes / 2" || fail "$reclaimed of $once bytes left"
    expect 4 two g a get two -o "$t/copy"
}
