"""What happens away from any request: gateways are asked, models prepared, heads timed, ways tried and verified."""
