"""`/v1/chat/completions`.

    body ──parse──► ChatDraft ──jobs.submit──► job ──► record ──completion──► ChatCompletion
                                                └──► events ──CompletionChunks──► server-sent events

`parse` and `completion` know no HTTP: a line of a batch is the same request.
"""
