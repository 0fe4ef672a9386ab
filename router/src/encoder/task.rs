//! Names of the tasks that a model can be served for.

use gridwork_proto::v1::Task;

/// Name of a task, as `--task` has it.
pub fn task_name(task: Task) -> &'static str {
    match task {
        Task::Embed => "embed",
        Task::Classify => "classify",
        Task::Rerank => "rerank",
        Task::FillMask => "fill-mask",
        Task::Generate | Task::Unspecified => "generate",
    }
}

/// Name of a task, as the Hugging Face hub has it.
pub fn pipeline_tag(task: Task) -> &'static str {
    match task {
        Task::Embed => "feature-extraction",
        Task::Classify => "text-classification",
        Task::Rerank => "text-ranking",
        Task::FillMask => "fill-mask",
        Task::Generate | Task::Unspecified => "text-generation",
    }
}
