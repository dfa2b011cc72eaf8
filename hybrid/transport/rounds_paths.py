"""Where the calls of campaigns are; both sides take the paths from here."""

from typing import Final

ROUNDS: Final = "/v2/hybrid/rounds"
TASK_PATH: Final = f"{ROUNDS}/task"
UPDATE_PATH: Final = f"{ROUNDS}/update"
EVALUATION_PATH: Final = f"{ROUNDS}/evaluation"
SECURE_PATH: Final = f"{ROUNDS}/secure"
CAMPAIGNS_PATH: Final = f"{ROUNDS}/campaigns"
STEPS_PATH: Final = f"{CAMPAIGNS_PATH}/{{campaign}}/steps/{{step}}/{{have}}"
SETS_PATH: Final = f"{ROUNDS}/evaluation"
KEY_PATH: Final = f"{ROUNDS}/key"
