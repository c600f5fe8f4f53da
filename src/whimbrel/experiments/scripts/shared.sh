#!/bin/bash
# Paper `fast`, III-C: root file system and dumps lie on a file system that both nodes mount; nothing is copied.
# SOURCE_SHARED and TARGET_SHARED: that file system as each node sees it.
. "$(dirname "$0")/lib.sh"

parent=
if tracks_memory; then
    for round in 1 2; do
        phase "round.$round.dump" checkpoint "$SOURCE_SHARED/images/$round" "$parent" --pre-dump
        parent=../$round
    done
else
    note "$CANNOT_DUMP_AHEAD"
fi
phase freeze.dump checkpoint "$SOURCE_SHARED/images/final" "$parent"
network stopped
network restoring
phase freeze.restore restore "$TARGET_SHARED/images/final"
network restored
