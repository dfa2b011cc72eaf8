"""The real agent under a system's eyes: ready, alive, reloading, stopping; and when it cannot stay up."""

import os
import signal
import time
from pathlib import Path

from edge_agent.disk import RealDisk
from edge_agent.living.crash_guard import CrashGuard
from edge_agent.living.patient import admitted


def test_ready_alive_reloaded_and_stopped(tmp_path: Path, start_agent):
    settings = tmp_path / "agent.toml"
    settings.write_text('metered = "yes"\nlog_level = "info"\n')
    log = tmp_path / "logs" / "agent.log"
    agent = start_agent("--config", str(settings), "--log-file", str(log), watchdog_s=0.6)
    assert "READY=1" in agent.hear("READY=1")
    for _ in range(3):
        agent.hear("WATCHDOG=1", within_s=3)
    status = admitted(agent.data, None, {}).part("link")
    assert status["metered"] is True
    settings.write_text('metered = "no"\nlog_level = "info"\n')
    agent.process.send_signal(signal.SIGHUP)
    agent.hear("RELOADING=1", within_s=5)
    agent.hear("READY=1", within_s=5)
    assert admitted(agent.data, None, {}).part("link")["metered"] is False
    settings.write_text('metered = "perhaps"\n')
    agent.process.send_signal(signal.SIGHUP)
    agent.hear("READY=1", within_s=5)
    agent.hear("WATCHDOG=1", within_s=5)
    assert admitted(agent.data, None, {}).part("link")["metered"] is False
    assert agent.stop() == 0
    agent.hear("STOPPING=1", within_s=5)
    assert "agent.ready" in log.read_text()
    assert "perhaps" in log.read_text()
    assert CrashGuard(agent.data, RealDisk()).early() == 0


def test_a_stopped_process_gives_no_sign_of_life(start_agent):
    agent = start_agent(watchdog_s=0.6)
    agent.hear("READY=1")
    agent.hear("WATCHDOG=1")
    os.kill(agent.process.pid, signal.SIGSTOP)
    time.sleep(0.3)
    agent._socket.settimeout(0.05)
    try:
        while agent._socket.recv(4096):
            pass
    except TimeoutError:
        pass
    time.sleep(0.7)
    try:
        assert not agent._socket.recv(4096)
    except TimeoutError:
        pass
    os.kill(agent.process.pid, signal.SIGCONT)
    agent.hear("WATCHDOG=1")


def test_killed_again_and_again_it_starts_with_less_and_says_so(tmp_path: Path, start_agent):
    for _ in range(2):
        CrashGuard(tmp_path / "agent", RealDisk()).begin()
    agent = start_agent()
    agent.hear("READY=1")
    agent.process.kill()
    agent.process.wait()
    agent = start_agent()
    agent.hear("READY=1")
    box = admitted(agent.data, None, {})
    assert box.part("living")["mode"] == "safe"
    assert "crash_loop" in {problem["code"] for problem in (box.status or {})["problems"]}
    assert agent.stop() == 0
    assert CrashGuard(agent.data, RealDisk()).early() == 0
