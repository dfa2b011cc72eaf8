#!/bin/sh
# The agent's command as its own user, with its own settings: `sudo hybrid-agent enroll TOKEN`, `sudo hybrid-agent doctor`.
set -e
export HYBRID_AGENT_DATA="${HYBRID_AGENT_DATA:-/var/lib/hybrid-agent}"
export HYBRID_AGENT_CONFIG="${HYBRID_AGENT_CONFIG:-/etc/hybrid/agent.toml}"
export HYBRID_CACHE="${HYBRID_CACHE:-/var/cache/hybrid-agent}"
export HYBRID_CONFIG="${HYBRID_CONFIG:-/var/lib/hybrid-agent/settings}"
if [ "$(id -un)" = hybrid-agent ]; then
    exec /usr/bin/hybrid agent "$@"
elif [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid hybrid-agent --regid hybrid-agent --init-groups -- /usr/bin/hybrid agent "$@"
fi
echo "hybrid-agent: this reads the agent's own folder; run it as root: sudo hybrid-agent $*" >&2
exit 77
