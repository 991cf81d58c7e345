"""What every room stands on: files that appear whole or not at all, several processes, versions, a cost meter, output."""
