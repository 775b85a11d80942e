"""NunDB's text language, spoken for its clients. Each connection is a `Conversation`; all share a few sessions.

`language.py` words and replies; `conversation.py` one client; `lanes.py` the operations of many clients as one request;
`doors.py` who may come in, and the sessions; `watching.py` change notices; `arbiters.py` conflicts; `verbs.py` all that
is not a key's value. The transports are in actors/.
"""
