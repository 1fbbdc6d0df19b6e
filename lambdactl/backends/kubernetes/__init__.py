"""Runs on Kubernetes, driven through its API alone.

`config` says which cluster, `kubeconfig` how to log in, `client` talks to the API in plain dicts, `errors` turns every
failure into one sentence, `rights` is the table of what is asked of the API, `check` tries all of it, `nodes` and
`fleet` say which nodes a fleet file means.
"""
