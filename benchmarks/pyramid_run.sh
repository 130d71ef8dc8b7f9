# Read by the scripts that train networks on a feature pyramid. They set task, config, record (a script) and data.

train() { # RUN [OPTION...]: trains or goes on, evaluates on the test part and records
    local run=runs/$1
    if [ -e "$run/config.yaml" ]; then
        dicenet train "$task" --resume "$run"
    else
        dicenet train "$task" --config "$config" --data "$data" --out "$run" "${@:2}"
    fi
    rm -rf "$run.test"
    dicenet evaluate "$task" --weights "$run/best.safetensors" --data "$data" --split test --out "$run.test"
    python "$record" "$run" "$run.test" "results/$1"
}
