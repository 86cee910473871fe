# Managed by Ansible, role hardening.
# A shell that has waited at its prompt for an hour ends: whoever comes by an open terminal would be root. What runs is left
# alone, and so is what tmux and screen keep. A TMOUT in ~/.profile has the last word, and 0 there is never.
[ -n "${TMUX-}${STY-}" ] || TMOUT=3600
