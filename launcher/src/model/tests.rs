use super::*;

const WEIGHTS: &str = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;

fn weights() -> Vec<u8> {
    [
        &(WEIGHTS.len() as u64).to_le_bytes()[..],
        WEIGHTS.as_bytes(),
        &[0; 4],
    ]
    .concat()
}

/// A folder that passes, for each test to break.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    put(&folder, "config.json", r#"{"model_type":"llama"}"#);
    put(
        &folder,
        "tokenizer_config.json",
        r#"{"tokenizer_class":"X"}"#,
    );
    put(&folder, "tokenizer.json", "{}");
    put(&folder, "model.safetensors", weights());
    folder
}

fn put(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) {
    fs::write(folder.path().join(name), content).unwrap();
}

fn remove(folder: &tempfile::TempDir, name: &str) {
    fs::remove_file(folder.path().join(name)).unwrap();
}

fn refusal(folder: &tempfile::TempDir) -> String {
    check_folder(folder.path(), &Trust::default())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_whole_model_passes() {
    check_folder(folder().path(), &Trust::default()).unwrap();
}

#[test]
fn a_model_in_parts_passes_and_a_missing_part_is_named() {
    let folder = folder();
    remove(&folder, "model.safetensors");
    put(
        &folder,
        "model.safetensors.index.json",
        r#"{"metadata":{},"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}}"#,
    );
    put(&folder, "x-1.safetensors", weights());
    put(&folder, "x-2.safetensors", weights());
    check_folder(folder.path(), &Trust::default()).unwrap();
    remove(&folder, "x-2.safetensors");
    assert!(refusal(&folder).contains("x-2.safetensors is missing"));
}

#[test]
fn what_is_missing_is_named() {
    for (file, expected) in [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
    ] {
        let folder = folder();
        remove(&folder, file);
        let message = refusal(&folder);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_truncated_file_is_named_with_what_to_do() {
    let folder = folder();
    put(&folder, "model.safetensors", &weights()[..60]);
    let message = refusal(&folder);
    assert!(
        message.contains("model.safetensors is truncated"),
        "{message}"
    );
    assert!(message.contains("download it again"), "{message}");
}

#[test]
fn pickled_weights_need_a_flag() {
    for file in ["pytorch_model.bin", "model.pt"] {
        let folder = folder();
        remove(&folder, "model.safetensors");
        put(&folder, file, "");
        put(&folder, "training_args.bin", "");
        let message = refusal(&folder);
        for expected in [
            file,
            "is a pickle file",
            "--allow-pickle-weights",
            "save_pretrained",
        ] {
            assert!(message.contains(expected), "{message}");
        }
        let trust = Trust {
            pickles: true,
            ..Trust::default()
        };
        let fitness = check_folder(folder.path(), &trust).unwrap();
        assert_eq!(fitness, Fitness::Pickled);
    }
}

#[test]
fn an_adapter_is_to_be_merged() {
    let folder = folder();
    remove(&folder, "config.json");
    put(&folder, "adapter_config.json", "{}");
    let fitness = check_folder(folder.path(), &Trust::default()).unwrap();
    assert_eq!(fitness, Fitness::Adapter);
}

#[test]
fn a_tokenizer_is_made_of_what_there_is() {
    for file in [
        "tokenizer.model",
        "vocab.txt",
        "qwen.tiktoken",
        "tokenizer_config.json",
    ] {
        let folder = folder();
        remove(&folder, "tokenizer.json");
        remove(&folder, "tokenizer_config.json");
        assert!(refusal(&folder).contains("has no tokenizer"));
        put(&folder, file, "{}");
        let fitness = check_folder(folder.path(), &Trust::default()).unwrap();
        assert_eq!(fitness, Fitness::NoTokenizer);
    }
}

#[test]
fn custom_code_needs_trust_and_the_file_is_named() {
    for (file, key, content) in [
        (
            "config.json",
            "auto_map",
            r#"{"auto_map":{"AutoConfig":"c.Config"}}"#,
        ),
        (
            "config.json",
            "text_config.auto_map",
            r#"{"text_config":{"auto_map":{"AutoModel":"m.M"}}}"#,
        ),
        (
            "config.json",
            "auto_map",
            r#"{"auto_map":{"AutoConfig":"org/other--c.Config"}}"#,
        ),
        (
            "tokenizer_config.json",
            "auto_map",
            r#"{"auto_map":{"AutoTokenizer":["t.T",null]}}"#,
        ),
        (
            "tokenizer_config.json",
            "auto_map",
            r#"{"auto_map":["t.T",null]}"#,
        ),
        (
            "processor_config.json",
            "image_processor.auto_map",
            r#"{"image_processor":{"auto_map":{"AutoImageProcessor":"p.P"}}}"#,
        ),
        (
            "preprocessor_config.json",
            "auto_map",
            r#"{"auto_map":{"AutoProcessor":"p.P"}}"#,
        ),
    ] {
        let folder = folder();
        put(&folder, file, content);
        let message = refusal(&folder);
        assert!(
            message.contains(&format!("{file} has {key})"))
                && message.contains("--trust-remote-code"),
            "{message}"
        );
        let trust = Trust {
            remote_code: true,
            ..Trust::default()
        };
        check_folder(folder.path(), &trust).unwrap();
    }
}

#[test]
fn an_empty_auto_map_asks_for_nothing() {
    let folder = folder();
    put(
        &folder,
        "config.json",
        r#"{"auto_map":{},"x":{"auto_map":null}}"#,
    );
    check_folder(folder.path(), &Trust::default()).unwrap();
}

#[test]
fn a_broken_config_is_named() {
    let folder = folder();
    put(&folder, "config.json", "{");
    assert!(refusal(&folder).contains("config.json is not valid JSON"));
    put(&folder, "config.json", "[]");
    assert!(refusal(&folder).contains("config.json is not a JSON object"));
}

#[test]
fn ids_are_told_apart() {
    let folder = folder();
    let path = folder.path().to_str().unwrap();
    assert_eq!(
        locate(path).unwrap(),
        Source::Folder(folder.path().to_owned())
    );
    put(&folder, "m.GGUF", "");
    let gguf = format!("{path}/m.GGUF");
    assert_eq!(locate(&gguf).unwrap(), Source::Gguf(PathBuf::from(&gguf)));
    assert_eq!(locate("gpt2").unwrap(), Source::Hub("gpt2".to_owned()));
    assert_eq!(
        locate("org/Name-1.5_x").unwrap(),
        Source::Hub("org/Name-1.5_x".to_owned())
    );
}

#[test]
fn what_looks_like_a_path_is_not_looked_up_on_the_hub() {
    for id in [
        "./model",
        "../model",
        "/no/model",
        "~/no-such-model",
        "model/",
        "a/b/c",
        "model.gguf",
    ] {
        let error = locate(id).unwrap_err();
        assert!(matches!(error, ModelError::NoSuchPath(_)), "{id}: {error}");
    }
    for id in ["", "a b", "org//name"] {
        assert!(locate(id).is_err(), "{id}");
    }
}
