"""Who belongs to the fleet: enrolment, access, the registry of boxes, clones, alarms."""
