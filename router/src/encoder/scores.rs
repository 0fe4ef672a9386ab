//! From the logits of labels to scores, as the model's folder says.

use gridwork_proto::v1::{InfoResponse, LabelScore};

/// The scores of one input's labels, in the order of `logits`.
pub fn label_scores(info: &InfoResponse, logits: &[f32]) -> Vec<f32> {
    let each = |function: fn(f32) -> f32| logits.iter().map(|&logit| function(logit)).collect();
    match (info.label_score(), logits) {
        (LabelScore::Logit, _) => logits.to_vec(),
        (LabelScore::Sigmoid, _) | (LabelScore::Unspecified, [_]) => each(sigmoid),
        (LabelScore::Tanh, _) => each(f32::tanh),
        (LabelScore::Softmax | LabelScore::Unspecified, _) => softmax(logits),
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(score: LabelScore, logits: &[f32]) -> Vec<f32> {
        let info = InfoResponse {
            label_score: score.into(),
            ..Default::default()
        };
        label_scores(&info, logits)
    }

    #[test]
    fn each_function_gives_its_scores() {
        assert_eq!(scores(LabelScore::Logit, &[3.0, -7.0]), [3.0, -7.0]);
        assert_eq!(scores(LabelScore::Sigmoid, &[0.0, 1e30]), [0.5, 1.0]);
        assert_eq!(scores(LabelScore::Tanh, &[0.0, 1e30]), [0.0, 1.0]);
        assert_eq!(scores(LabelScore::Softmax, &[2.0, 2.0]), [0.5, 0.5]);
    }

    #[test]
    fn the_default_is_sigmoid_for_one_label_and_softmax_for_several() {
        assert_eq!(scores(LabelScore::Unspecified, &[0.0]), [0.5]);
        assert_eq!(scores(LabelScore::Unspecified, &[0.0, 0.0]), [0.5, 0.5]);
    }

    #[test]
    fn a_softmax_of_large_logits_is_finite() {
        assert_eq!(scores(LabelScore::Softmax, &[1e30, -1e30]), [1.0, 0.0]);
    }
}
