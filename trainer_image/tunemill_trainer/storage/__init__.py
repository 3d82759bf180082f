"""Where outputs are kept: below a prefix of an S3 bucket, or in a folder of this machine."""
