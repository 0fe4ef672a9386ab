//! Templates in the style of well-known models, compared with Transformers' prompts for the same conversations.

use serde_json::json;

use super::adapt::ContentForm;
use super::*;

/// SmolLM2-Instruct's own template.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}";

const LLAMA3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls[0].function | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const MISTRAL: &str = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"#;

/// A template that loops over parts and also accepts strings.
const GEMMA3: &str = r#"{{ bos_token }}
{%- for message in messages -%}
    {{ '<start_of_turn>' + message['role'] + '
' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ '(' ~ item['text'] | trim ~ ')' }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"#;

const PARTS_ONLY: &str = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}|{% endif %}{% endfor %}{% endfor %}";

const QWEN3_END: &str = "{% for m in messages %}{{ m.role ~ ':' ~ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}";

fn template(source: &str) -> ChatTemplate {
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::compile(source, tokens.as_object().cloned().unwrap()).unwrap()
}

pub fn conversation(messages: Json) -> Vec<Message> {
    serde_json::from_value(messages).unwrap()
}

const PROMPT: RenderOptions<'static> = RenderOptions {
    add_generation_prompt: true,
    continue_final_message: false,
    variables: None,
};
const CONTINUE: RenderOptions<'static> = RenderOptions {
    add_generation_prompt: false,
    continue_final_message: true,
    variables: None,
};
pub const PLAIN: RenderOptions<'static> = RenderOptions {
    add_generation_prompt: false,
    continue_final_message: false,
    variables: None,
};

#[test]
fn smollm2_is_rendered_as_transformers_renders_it() {
    let template = template(SMOLLM2);
    let default_system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let cases = [
        (
            json!([{"role": "user", "content": "What is the capital of France?"}]),
            PROMPT,
            format!(
                "{default_system}<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
            ),
        ),
        (
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi <b>\"é\"</b>\n "},
                {"role": "assistant", "content": "Hello "},
                {"role": "user", "content": ""},
            ]),
            PROMPT,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>\"é\"</b>\n <|im_end|>\n<|im_start|>assistant\nHello <|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n".to_owned(),
        ),
        (
            json!([{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]),
            CONTINUE,
            format!("{default_system}<|im_start|>user\nCount<|im_end|>\n<|im_start|>assistant\nOne, two,"),
        ),
        (
            json!([{"role": "narrator", "content": "Once"}]),
            PLAIN,
            format!("{default_system}<|im_start|>narrator\nOnce<|im_end|>\n"),
        ),
    ];
    for (messages, options, expected) in cases {
        let prompt = template.render(&conversation(messages), &options);
        assert_eq!(prompt.unwrap(), expected);
    }
}

#[test]
fn parts_are_joined_for_a_template_that_concatenates() {
    let prompt = template(SMOLLM2)
        .render(
            &conversation(json!([
                {"role": "system", "content": ""},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ])),
            &PLAIN,
        )
        .unwrap();
    assert!(prompt.ends_with("<|im_start|>user\nab<|im_end|>\n"));
}

#[test]
fn parts_stay_parts_for_a_template_that_loops_over_them() {
    let gemma = template(GEMMA3);
    assert_eq!(gemma.default.forms.content, ContentForm::Either);
    let prompt = gemma
        .render(
            &conversation(json!([
                {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]},
                {"role": "model", "content": " c "},
            ])),
            &PROMPT,
        )
        .unwrap();
    assert_eq!(
        prompt,
        "<s><start_of_turn>user\n(a)(b)<end_of_turn>\n<start_of_turn>model\nc<end_of_turn>\n<start_of_turn>model\n"
    );

    let parts_only = template(PARTS_ONLY);
    assert_eq!(parts_only.default.forms.content, ContentForm::Parts);
    let messages = conversation(json!([{"role": "user", "content": "hello"}]));
    assert_eq!(parts_only.render(&messages, &PLAIN).unwrap(), "user:hello|");
}

#[test]
fn llama3_trims_and_knows_the_date() {
    let variables = json!({"date_string": "01 Jan 2026"});
    let options = RenderOptions {
        variables: variables.as_object(),
        ..PROMPT
    };
    let messages = conversation(json!([
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi\n"},
    ]));
    assert_eq!(
        template(LLAMA3).render(&messages, &options).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Jan 2026\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let today = template(LLAMA3).render(&messages, &PROMPT).unwrap();
    assert!(today.contains("Today Date: ") && !today.contains("Date: \n"));
}

#[test]
fn further_fields_of_a_message_reach_the_template() {
    let prompt = template(LLAMA3)
        .render(
            &conversation(json!([{
                "role": "assistant",
                "content": null,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}],
            }])),
            &PLAIN,
        )
        .unwrap();
    assert!(prompt.ends_with(r#"<|eot_id|>{"name": "f", "arguments": {"a": 1}}"#));
}

#[test]
fn a_developer_message_is_a_system_message_unless_the_template_knows_better() {
    let messages = conversation(json!([{"role": "developer", "content": "Be brief"}]));
    let roles = "{% for message in messages %}{{ message.role }}{% endfor %}";
    let known = "{% if messages[0].role == 'developer' %}yes{% endif %}";
    for (source, expected) in [(roles, "system"), (known, "yes")] {
        let prompt = template(source).render(&messages, &RenderOptions::default());
        assert_eq!(prompt.as_deref(), Ok(expected));
    }
}

#[test]
fn mistral_renders_and_raises() {
    let mistral = template(MISTRAL);
    let messages = conversation(json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": " B "},
        {"role": "user", "content": "C"},
    ]));
    assert_eq!(
        mistral.render(&messages, &PROMPT).unwrap(),
        "<s>[INST] A[/INST] B</s>[INST] S\n\nC[/INST]"
    );
    let error = mistral
        .render(
            &conversation(json!([{"role": "assistant", "content": "B"}])),
            &PROMPT,
        )
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("After the optional system message, conversation roles must alternate"),
        "{error}"
    );
}

#[test]
fn a_trimmed_last_message_is_continued_without_its_space() {
    let messages = conversation(json!([
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "One, "},
    ]));
    assert_eq!(
        template(MISTRAL).render(&messages, &CONTINUE).unwrap(),
        "<s>[INST] A[/INST] One,"
    );
}

#[test]
fn variables_of_the_request_reach_the_template() {
    let template = template(QWEN3_END);
    let messages = conversation(json!([{"role": "user", "content": "hi"}]));
    let variables = json!({"enable_thinking": false});
    let options = RenderOptions {
        variables: variables.as_object(),
        ..PROMPT
    };
    assert_eq!(
        template.render(&messages, &options).unwrap(),
        "user:hi\nassistant:<think></think>"
    );
    assert_eq!(
        template.render(&messages, &PROMPT).unwrap(),
        "user:hi\nassistant:"
    );
}

#[test]
fn documents_are_a_variable_like_others_and_none_when_left_out() {
    let template =
        template("{% if documents is none %}none{% else %}{{ documents[0].text }}{% endif %}");
    let variables = json!({"documents": [{"text": "a"}]});
    for (variables, expected) in [(None, "none"), (variables.as_object(), "a")] {
        let options = RenderOptions { variables, ..PLAIN };
        assert_eq!(template.render(&[], &options).as_deref(), Ok(expected));
    }
}

#[test]
fn errors_name_their_cause_and_line() {
    let error = ChatTemplate::compile("{% for %}", Map::new()).unwrap_err();
    assert!(matches!(&error, ChatTemplateError::Compile(text) if text.contains("line 1")));
    let error = template("{{ messages[0].a.b.c }}")
        .render(
            &conversation(json!([{"role": "user", "content": "x"}])),
            &PLAIN,
        )
        .unwrap_err();
    assert!(
        matches!(&error, ChatTemplateError::Render(text) if text.contains("line 1")),
        "{error}"
    );
}
