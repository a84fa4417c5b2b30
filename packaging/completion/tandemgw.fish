# Completion of tandemgw for fish: the program itself knows what can stand where.
complete -c tandemgw -f -a '(tandemgw complete -- (commandline -cp) 2>/dev/null)'
