# Completion of tandemgw for bash: the program itself knows what can stand where.
_tandemgw() {
    local line="${COMP_LINE:0:COMP_POINT}" word candidate
    word="${line##*[[:space:]]}"
    # bash breaks words at = and :, and replaces only what comes after the last of them.
    local kept="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$kept"}")
    done < <("${COMP_WORDS[0]}" complete -- "$line" 2>/dev/null)
    case "${COMPREPLY[0]-}" in
    *= | */) compopt -o nospace ;;
    esac
}
complete -F _tandemgw tandemgw
