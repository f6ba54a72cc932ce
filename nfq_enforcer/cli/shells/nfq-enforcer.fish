# Completion of nfq-enforcer for fish 3.4 or newer: nfq-enforcer completion fish | source

function __nfq_enforcer_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l lines ($program __complete $words "$(commandline -ct)" 2>/dev/null)
    if test "$lines[1]" = :files
        __fish_complete_path "$(commandline -ct)"
        return
    end
    set -e lines[1]
    printf '%s\n' $lines
end

complete -c nfq-enforcer -f -a '(__nfq_enforcer_complete)'
