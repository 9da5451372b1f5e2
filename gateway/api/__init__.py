"""HTTP's side of the gateway: routes, shapes of answers, errors as status codes.

`native/` is our own API under `/v1`. Another API, such as OpenAI's, is a folder beside it whose routes `gateway.app`
lists: `intake.request_reader` makes a `Submission` of a request, `jobs.service` a job of a submission, whichever API it
came by. The files here are every API's: errors, request ids, health, metrics, the OpenAPI document.
"""
