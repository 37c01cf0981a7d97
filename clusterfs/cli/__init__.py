"""The commands: clusterfs, mount.clusterfs, clusterfs-lockdump."""
