"""The supervisor of the agent as a pure function: (state, event, moment) -> (state, effects).

    WAITING --> FETCHING --> CONNECTING --> SUBSCRIBING --> ONLINE
       ^           |             |               |             |
       +-----------+-------------+---------------+-------------+      STOPPING --> STOPPED, from any of them

Every decision of `device-agent run` is made here, in `step`; `runner` performs the effects and feeds the events. The
agent connects to the brokers that it knows, one after the other, and asks the enrollment service for their addresses
when it knows none or when all have failed. It never gives up.
"""
