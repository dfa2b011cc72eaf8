"""The models of a box: each behind a hybrid session, sharing the machine by priority."""
