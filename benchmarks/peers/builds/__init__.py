"""Others' ways from JSON Lines to stored tokens. Each module: NAME, `build(files, folder, tokenizer_file, eos_token)` and
`tokens(folder)`, all tokens as one array, EOS after each document, the documents in any order."""
