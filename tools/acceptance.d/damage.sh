# Damaged segments, and power cut at any moment.
# shellcheck shell=bash disable=SC2154

# The segments of NAME that hold bulk data.
segments() { find "$t/$1/segments" -name '*.seg' -size +2M | sort; }

flip() { # FILE OFFSET
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    # shellcheck disable=SC2059
    printf "\\x$(printf %02x $((byte ^ 0x10)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# Flips a bit, cuts 64 KiB out, or swaps two pieces, in every bulk segment of NAME.
harm() { # NAME KIND
    local segment count=0
    for segment in $(segments "$1"); do
        count=$((count + 1))
        case $2 in
            flip) flip "$segment" $((1048576 * 2 + 4321)) && flip "$segment" $((1048576 * 5 + 77)) ;;
            cut) dd if=/dev/zero of="$segment" bs=65536 seek=50 count=1 conv=notrunc status=none ;;
            swap)
                dd if="$segment" of="$t/piece.a" bs=4096 skip=700 count=300 status=none
                dd if="$segment" of="$t/piece.b" bs=4096 skip=1700 count=300 status=none
                dd if="$t/piece.b" of="$segment" bs=4096 seek=700 conv=notrunc status=none
                dd if="$t/piece.a" of="$segment" bs=4096 seek=1700 conv=notrunc status=none
                ;;
        esac
    done
    [ $count -gt 0 ] || fail "no segment of $1 to harm"
    echo "harmed $count segments of $1: $2"
}

test_damage_mended() {
    local kind content
    node_start a --replicas 2
    node_join b a --member
    node_ready a 2
    node_ready b 2
    for kind in flip cut swap; do
        # A get meets the damage first.
        random_file "$t/file" $((64 << 20)) "$seed.get.$kind"
        g a put "$t/file" --name "get-$kind"
        harm_while_away b $kind
        g b get "get-$kind" -o "$t/copy"
        same "$t/file" "$t/copy"
        rm "$t/copy"
        g b verify || fail "verify after a get exits $?"
        # And now verify.
        random_file "$t/file" $((64 << 20)) "$seed.verify.$kind"
        content=$(g a put -q "$t/file" --name "verify-$kind")
        harm_while_away b $kind
        g b verify > "$t/verify.out" || fail "verify exits $? and leaves damage: $(cat "$t/verify.out")"
        grep -q '^mended  gc1' "$t/verify.out" || fail "verify does not name what it mended: $(cat "$t/verify.out")"
        figure "$kind: $(grep -c '^mended' "$t/verify.out") mended;"
        g b verify > "$t/again.out" || fail "verify finds damage again: $(cat "$t/again.out")"
        grep -q ' 0 damaged' "$t/again.out" || fail "verify finds damage again: $(cat "$t/again.out")"
        # What was mended is here: by its content id, since a name needs both of two members.
        node_kill a
        g b get "$content" -o "$t/copy"
        same "$t/file" "$t/copy"
        rm "$t/copy"
        node_start a
        node_ready a 2
        node_ready b 2
    done
}

harm_while_away() { # NAME KIND
    node_stop "$1"
    harm "$1" "$2"
    node_start "$1"
    node_ready "$1" 2
}

test_damage_alone() {
    local kind code bytes
    for kind in flip cut swap; do
        node_start "$kind" --replicas 1
        random_file "$t/file" $((64 << 20)) "$seed.$kind"
        g $kind put "$t/file"
        node_stop $kind
        harm $kind $kind
        node_start $kind
        expect 6 file g $kind get file -o "$t/copy"
        [ ! -e "$t/copy" ] || fail "a damaged file appeared"
        code=0
        g $kind cat file > "$t/stream" 2> "$t/cat.err" || code=$?
        [ $code = 6 ] || fail "cat exits $code: $(cat "$t/cat.err")"
        bytes=$(stat -c %s "$t/stream")
        cmp -n "$bytes" "$t/stream" "$t/file" || fail "a wrong byte came out"
        code=0
        g $kind verify > "$t/verify.out" || code=$?
        [ $code = 6 ] || fail "verify exits $code: $(cat "$t/verify.out")"
        figure "$kind: stopped after $((bytes >> 20)) MiB;"
        rm -f "$t"/.*.gabion-part
        node_stop $kind
    done
}

# Puts one file after the other until the node is gone; what was acknowledged goes into a list, and so does any end but
# that the node went away.
put_until_killed() { # WORKER ROUND
    local number=0 name code
    while :; do
        name=$2-$1-$number
        noise $(((RANDOM * 32768 + RANDOM) % 3000000)) "$seed.$name" > "$t/in.$1"
        code=0
        g a put -q "$t/in.$1" --name "kills/$name" > /dev/null 2> "$t/put.$1" || code=$?
        if [ $code != 0 ]; then
            [ $code = 5 ] || grep -qE 'went away|the node (is stopping|stops)' "$t/put.$1" \
                || echo "put kills/$name exits $code: $(cat "$t/put.$1")" >> "$t/unexpected"
            return 0
        fi
        echo "$name $(sha256sum < "$t/in.$1")" >> "$t/acknowledged.$1"
        number=$((number + 1))
    done
}

check_acknowledged() { # PATTERN
    local name sum rest
    while read -r name sum rest; do
        [ "$(g a cat "kills/$name" | sha256sum | cut -d' ' -f1)" = "$sum" ] || fail "kills/$name is lost or wrong"
    done < <(cat "$t"/acknowledged.* 2> /dev/null | grep -- "$1" || true)
}

test_kills() {
    local round worker workers count
    node_start a
    for round in $(seq "$kills"); do
        workers=()
        for worker in 1 2 3 4; do
            RANDOM=$((seed + round * 10 + worker))
            put_until_killed $worker "$round" &
            workers+=($!)
        done
        sleep "$(calc "0.05 + $((RANDOM % 1000)) / 800" 3)"
        node_kill a
        wait "${workers[@]}"
        [ ! -e "$t/unexpected" ] || fail "in round $round: $(cat "$t/unexpected")"
        node_start a
        check_acknowledged "^$round-"
    done
    check_acknowledged .
    g a verify || fail "verify exits $?"
    count=$(cat "$t"/acknowledged.* | wc -l)
    figure "$count acknowledged puts"
    [ "$count" -ge "$kills" ] || fail "$count acknowledged puts in $kills rounds are too few to tell"
}
