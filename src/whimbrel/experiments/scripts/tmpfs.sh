#!/bin/bash
# Paper `fast`, III-B1: root file system by rsync, dumps into a tmpfs, each copied by rsync, restored from a tmpfs.
. "$(dirname "$0")/lib.sh"

phase rootfs send rootfs
parent=
if tracks_memory; then
    for round in 1 2; do
        phase "round.$round.dump" checkpoint "$SOURCE_DIR/images/$round" "$parent" --pre-dump
        phase "round.$round.copy" send "images/$round"
        parent=../$round
    done
else
    note "$CANNOT_DUMP_AHEAD"
fi
phase freeze.dump checkpoint "$SOURCE_DIR/images/final" "$parent"
network stopped
phase freeze.copy send images/final
network restoring
phase freeze.restore restore "$TARGET_DIR/images/final"
network restored
