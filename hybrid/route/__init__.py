"""What is known of the requests of one shape, and how one of them travels: engine, feeds, ways, holdings, departure."""
