#compdef nfq-enforcer
# Completion of nfq-enforcer for zsh: source <(nfq-enforcer completion zsh), or as a file _nfq-enforcer in $fpath

_nfq_enforcer() {
    local -a lines values
    local line
    lines=("${(@f)$("${words[1]/#\~/$HOME}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    if [[ ${lines[1]} == :files ]]; then
        _files
        return
    fi
    for line in "${(@)lines[2,-1]}"; do
        values+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    _describe 'nfq-enforcer' values
}

if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _nfq_enforcer "$@"
else
    compdef _nfq_enforcer nfq-enforcer
fi
