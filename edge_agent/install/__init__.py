"""Installation of models in A/B slots: verified, rehearsed, on trial, committed, or back to the last good one."""
