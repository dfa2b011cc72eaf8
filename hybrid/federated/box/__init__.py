"""What a box does with a task, without a clock, a disk or a link: the agent and the simulation do it alike."""
