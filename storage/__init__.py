"""The bytes on disk: oplog, keys and values files, snapshots, recovery, migration."""
