"""Importance maps on the Hub: fetching (`download`), publishing (`upload`), finding (`search`), and looking (`inspect`)."""
