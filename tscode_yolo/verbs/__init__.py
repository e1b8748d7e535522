"""What the verbs have in common: reading arguments and files, writing results, saying where a number comes from."""
