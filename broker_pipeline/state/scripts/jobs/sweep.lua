-- Forgets some finished jobs whose time has come. Returns how many.
return sweep()
