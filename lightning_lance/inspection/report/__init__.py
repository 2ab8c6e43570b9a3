"""A report about a store, as one page without network, and its token counts as a Parquet file.

spans           which tokens are read: all, or a sample
counting        one pass over them: tokens by id, lengths of documents, tokens by license and repository
compression     characters and bytes per token
windows         documents per window, and some windows in full
plan            how often a run would repeat what is stored
spelling        what a token id stands for, in bytes and as text
charts          pictures, as SVG
page            all of it as HTML
files           where reports go: nothing of others is replaced
writing         what the user calls
"""
