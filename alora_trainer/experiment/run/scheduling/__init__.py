"""Work over several processes of this machine or jobs of a cluster, each piece remembered when it is done."""
