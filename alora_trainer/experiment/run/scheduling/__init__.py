"""Work over several processes of this machine, each piece remembered when it is done."""
