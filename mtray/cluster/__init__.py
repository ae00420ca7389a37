"""The run on Ray: session, actors, supervisor. The only room that imports ray."""
