"""A Sigstore instance for tests: Fulcio's and Rekor's HTTP protocol, with real certificates, proofs and signatures."""
