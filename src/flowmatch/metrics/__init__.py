"""Metrics: how far samples lie from data. Every number here has a floor; read it beside the value."""

from flowmatch.metrics.c2st import c2st
from flowmatch.metrics.classifier import Classifier, ClassifierFeatures, load_features
from flowmatch.metrics.features import FeatureNet, extract, label_of
from flowmatch.metrics.frechet import FrechetStatistics, frechet_distance
from flowmatch.metrics.image_scores import ImageScores, evaluate_images
from flowmatch.metrics.inception import InceptionFeatures, inception_features
from flowmatch.metrics.kernel_distance import KernelDistance, kernel_distance
from flowmatch.metrics.mmd import mmd
from flowmatch.metrics.precision_recall import PrecisionRecall, precision_recall
from flowmatch.metrics.similarity import psnr, ssim
from flowmatch.metrics.training import train_classifier
from flowmatch.metrics.wasserstein import sliced_wasserstein, wasserstein

__all__ = [
    "Classifier",
    "ClassifierFeatures",
    "FeatureNet",
    "FrechetStatistics",
    "ImageScores",
    "InceptionFeatures",
    "KernelDistance",
    "PrecisionRecall",
    "c2st",
    "evaluate_images",
    "extract",
    "frechet_distance",
    "inception_features",
    "kernel_distance",
    "label_of",
    "load_features",
    "mmd",
    "precision_recall",
    "psnr",
    "sliced_wasserstein",
    "ssim",
    "train_classifier",
    "wasserstein",
]
