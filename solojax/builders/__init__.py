"""From a config to what it describes: networks, tasks, data and optimizers get their arguments."""
