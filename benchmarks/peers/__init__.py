"""The same job done by other frameworks. `compare` runs them, a file each shows how it is written; `job` is the job.

Nothing is imported here: peers run in environments of their own.
"""
