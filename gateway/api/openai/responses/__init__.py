"""`/v1/responses`: a job as one turn of a conversation that can be gone on with.

body ──parse──► ResponseDraft ──jobs.submit──► job ──► spec and record ──response──► Response
                    ▲                           └──► events ──ResponseEvents──► server-sent events
the previous job's spec and record
"""
