# Completion of nfq-enforcer for bash 4.4 or newer: source <(nfq-enforcer completion bash)

_nfq_enforcer() {
    # COMP_WORDS is broken at = and :, which are part of a word here: join the parts that no blank separates.
    local -a words=() lines=()
    local part gap line value index rest=${COMP_LINE:0:COMP_POINT}
    for ((index = 0; index <= COMP_CWORD; index++)); do
        part=${COMP_WORDS[index]}
        if ((index == COMP_CWORD)); then
            part=${rest#"${rest%%[![:space:]]*}"} # up to the cursor
        fi
        gap=${rest%%"$part"*}
        [[ -n $part ]] || gap=$rest
        rest=${rest#"$gap$part"}
        if [[ -z $gap ]] && ((index > 0)); then
            words[-1]+=$part
        else
            words+=("$part")
        fi
    done

    local current=${words[-1]}
    mapfile -t lines < <("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    if [[ ${lines[0]-} == :files ]]; then
        compopt -o default
        return
    fi
    for line in "${lines[@]:1}"; do
        value=${line%%$'\t'*}
        # readline replaces the last part of the word only
        COMPREPLY+=("${value#"${current%"${current##*[=:]}"}"}")
    done
}

complete -F _nfq_enforcer nfq-enforcer
