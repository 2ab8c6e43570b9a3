"""The systems we are compared with, one file each: how it stores tokens, and how it serves them.

Each is written here from the public interface of the system, as its documentation tells a user to write it. For windows, a
peer has

- `NAME`, for the table,
- `store(tokens, folder, context_length)`, which writes the flat (n,) uint16 tokens in the peer's own format,
- `batches(folder, context_length, batch_size)`, an endless iterator of `(x, y)`, both (batch_size, context_length) int64,
  `y[:, i] = x[:, i + 1]`.
"""
