"""`make quickstart`: the whole pipeline on this machine, without a cluster, an S3 server or a Hub."""
