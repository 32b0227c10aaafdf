# Wrong input: one line that names the thing and the way out, the right exit code, nothing lost, nothing half-written.
# shellcheck shell=bash disable=SC2154

test_errors() {
    local reader=() before after number=0
    node_start a
    echo kept > "$t/file"
    g a put "$t/file"
    before=$(g a ls --json | sha256sum)

    echo secret > "$t/unreadable"
    chmod 000 "$t/unreadable"
    # Root may read everything: somebody else then.
    if [ "$(id -u)" = 0 ]; then
        reader=(setpriv --reuid 65534 --regid 65534 --clear-groups)
        chmod 755 "$work" "$t"
    fi
    cp "$gabion" "$t/gabion"
    expect 1 unreadable "${reader[@]}" "$t/gabion" --data-dir "$t/a" put "$t/unreadable"
    expect 4 missing g a put "$t/missing"
    expect 4 nothing g a get nothing -o "$t/never"
    expect 4 nothing g a rm nothing
    expect 2 name g a put -
    expect 2 bucket g a put "$t/file" --name 'Main/x'
    expect 7 ticket "$gabion" --listen 127.0.0.1:0 --data-dir "$t/never" --join gt1damaged
    local ticket link
    ticket=$(g a ticket)
    expect 7 ticket "$gabion" --listen 127.0.0.1:0 --data-dir "$t/never" --join "${ticket%?????}aaaaa"
    link=$(g a share file)
    expect 7 link g a get "${link%?????}aaaaa" -o "$t/never"
    expect 7 link g a get "${link:0:60}" -o "$t/never"
    expect 2 'content id' g a get gc1abc -o "$t/never"
    expect 1 "$(cat "$t/a.port")" "$gabion" --listen "127.0.0.1:$(cat "$t/a.port")" --data-dir "$t/other"
    expect 1 "$t/a" "$gabion" --listen 127.0.0.1:0 --data-dir "$t/a"
    expect 5 "$t/empty" "$gabion" --data-dir "$t/empty" status
    expect 2 listen "$gabion" --listen nonsense
    [ ! -e "$t/never" ] || fail "something was half-written"

    # A segment of a format from the future.
    node_stop a
    local segment
    segment=$(find "$t/a/segments" -name '*.seg' | sort | tail -n 1)
    cp "$segment" "$t/segment"
    newer "$segment"
    expect 1 newer "$gabion" --listen 127.0.0.1:0 --data-dir "$t/a"
    cp "$t/segment" "$segment"
    node_start a
    after=$(g a ls --json | sha256sum)
    [ "$before" = "$after" ] || fail "the names changed: $(g a ls)"
    [ "$(g a cat file)" = kept ] || fail "the file changed"
    number=$(grep -c '^    expect' "${BASH_SOURCE[0]}")
    figure "$number errors"
}

# Sets format version 2 in a segment's header and makes its checksum right (CRC32 as gzip computes it).
newer() { # FILE
    printf '\002\000' | dd of="$1" bs=1 seek=8 conv=notrunc status=none
    head -c 4092 "$1" | gzip -c | tail -c 8 | head -c 4 | dd of="$1" bs=1 seek=4092 conv=notrunc status=none
}

test_full_disk() {
    mkdir "$t/disk"
    truncate -s 512M "$t/image"
    mkfs.ext4 -q -F -m 0 "$t/image" || fail "no mkfs.ext4; install e2fsprogs"
    mount -o loop "$t/image" "$t/disk" || skip "no loop device can be mounted here: run as root on a machine that has them"
    touch "$t/disk.mounted"
    node_start disk/a --replicas 1
    random_file "$t/small" $((16 << 20)) "$seed"
    random_file "$t/large" $((600 << 20)) "$seed.large"
    g disk/a put "$t/small" --name kept
    expect 8 'space' g disk/a put "$t/large" --name large
    expect 4 large g disk/a get large -o "$t/never"
    g disk/a get kept -o "$t/copy"
    same "$t/small" "$t/copy"
    g disk/a ls
    g disk/a rm kept
    g disk/a reclaim
    # Somebody else takes every byte that is left.
    g disk/a put "$t/small" --name last
    dd if=/dev/zero of="$t/disk/filler" bs=1M status=none 2> /dev/null || true
    dd if=/dev/zero of="$t/disk/filler" bs=4k oflag=append conv=notrunc status=none 2> /dev/null || true
    # A removal has to be written down as well: it works, or is refused clearly and has removed nothing.
    local round code removed=
    for round in 1 2 3; do
        code=0
        g disk/a rm last > "$t/rm.out" 2> "$t/rm.err" || code=$?
        case $code${removed:+ again} in
            0) removed=1 ;;
            '4 again') ;;
            8) grep -q 'disk is full' "$t/rm.err" || fail "not clear in round $round: $(cat "$t/rm.err")" ;;
            *) fail "rm exits $code in round $round: $(cat "$t/rm.err")" ;;
        esac
        if [ -z "$removed" ]; then
            g disk/a get last -o "$t/copy"
            same "$t/small" "$t/copy"
        else
            expect 4 last g disk/a get last -o "$t/never"
        fi
        expect 4 kept g disk/a get kept -o "$t/never"
        g disk/a ls
        g disk/a status || [ $? = 3 ] || fail "no status"
    done
    figure "the removal without a byte left $([ -n "$removed" ] && echo worked || echo was refused)"
    rm "$t/disk/filler"
    [ -n "$removed" ] || g disk/a rm last
    expect 4 last g disk/a get last -o "$t/never"
    g disk/a put "$t/small" --name again
    g disk/a get again -o "$t/copy"
    same "$t/small" "$t/copy"
    g disk/a rm again
    # A put that was cut off keeps its chunks until its version is proved dead: what is left must still serve.
    node_stop disk/a
    node_start disk/a
    expect 4 kept g disk/a get kept -o "$t/never"
    node_stop disk/a
    umount "$t/disk"
    rm "$t/disk.mounted"
}
