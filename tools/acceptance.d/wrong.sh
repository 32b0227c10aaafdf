# Whether the load generator sees it: the other tests that it runs trust its word that every byte was right.
# shellcheck shell=bash disable=SC2154

test_wrong() {
    loadgen=$(dirname "$gabion")/loadgen
    [ -x "$loadgen" ] || fail "no $loadgen; run cargo build --release --workspace first"
    node_start a
    finds_each 64K 7 # by a command each
    finds_each 48K 8 # over connections that are kept
    figure "8 wrong objects found"
}

finds_each() { # SIZE SEED
    size=$1 seed_here=$2
    load put --count 8 --keep > "$t/put"
    load get --objects 8 --count 64 --keep --reuse > "$t/get"

    # One byte changed, under a name whose content it knows; then another file altogether; then one that is cut short.
    g a get "$(name)" -o "$t/object"
    cp "$t/object" "$t/flipped"
    printf 'X' | dd of="$t/flipped" bs=1 seek=40000 conv=notrunc status=none
    cmp -s "$t/object" "$t/flipped" && printf 'Y' | dd of="$t/flipped" bs=1 seek=40000 conv=notrunc status=none
    replaced "$t/flipped"
    finds 6 'object-3 at .*: wrong from byte 40000 on'
    head -c 65536 /dev/zero > "$t/zeros"
    replaced "$t/zeros"
    finds 6 'object-3 at .*: wrong from byte 0 on'
    head -c 45000 "$t/object" > "$t/cut"
    replaced "$t/cut"
    finds 6 'object-3 at .*: nothing more came from byte 45000 on'
    g a rm "$(name)"
    finds 4 'object-3 at .*: acknowledged and not there'
    replaced "$t/object"
    load get --objects 8 --count 64 --reuse > "$t/get"
}

load() { "$loadgen" "$1" --node "$t/a" --size "$size" --seed "$seed_here" --concurrency 4 "${@:2}"; }

name() { echo "loadgen-$seed_here/object-3"; }

replaced() { g a put "$1" --name "$(name)"; }

finds() { # CODE TEXT
    local code=0
    load get --objects 8 --count 64 --keep --reuse > "$t/found" 2>&1 || code=$?
    [ $code = "$1" ] || fail "exit code $code instead of $1: $(cat "$t/found")"
    grep -q "^loadgen: WRONG: .*$2" "$t/found" || fail "\"$2\" is not in: $(cat "$t/found")"
}
